"""Small backbones learned from large ones: recipes, images, checkpoints, and the verb."""
