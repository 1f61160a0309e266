"""How a step is made: the objective, the optimiser, the state, and where a run starts."""
