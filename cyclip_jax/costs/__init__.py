"""What a step costs, read from its program: operations, memory, traffic between devices."""
