"""From a TrainConfig to a trained model: optimiser, step, loop, checkpoint."""
