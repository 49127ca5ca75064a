"""Accuracy of predicted parameters on architectures a GHN never saw."""
