"""A federation over Flower: its messages, its rounds, and how they travel on Flower's grid."""
