"""Measured against labels: metrics and the readers of labelled data sets."""
