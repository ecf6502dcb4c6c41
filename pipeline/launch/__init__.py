"""Starting processes on machines, and ending them."""
