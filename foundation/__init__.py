"""What every package stands on: files that are whole or absent, full disks in one line, and how to install an extra."""
