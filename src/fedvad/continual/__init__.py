"""Task streams, replay memories, codecs, forgetting: detectors that keep learning."""
