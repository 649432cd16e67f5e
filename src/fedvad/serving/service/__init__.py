"""The web service over a predictor; needs the extra `serve`."""
