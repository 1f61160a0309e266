"""What a run needs of its machine and of the others: signals, clocks, locks, processes."""
