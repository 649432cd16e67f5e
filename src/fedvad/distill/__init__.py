"""Students that imitate a frozen teacher: training loop, losses, maps, costs."""
