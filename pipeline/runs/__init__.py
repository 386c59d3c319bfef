"""What a run stands on: its folder, the machine and its precision, and finding finished runs again."""
