"""What stands beside a run: looking, planning, fetching, tuning."""
