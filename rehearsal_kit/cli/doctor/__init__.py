"""What this machine has for the toolkit, what it lacks, and the fix for each lack."""
