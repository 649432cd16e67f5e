"""Many runs compared: benches, continual streams, distillation recipes."""
