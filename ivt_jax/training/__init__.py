"""Training: the loop, the step and its objective, the optimiser, the mesh."""
