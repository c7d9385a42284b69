"""How it runs: the loop, its schedules, checkpoints and logs."""
