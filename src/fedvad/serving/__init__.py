"""Trained runs at work: predictor, web service, exports."""
