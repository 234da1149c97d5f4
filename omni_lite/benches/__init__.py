"""Benches, one module for each: imported when asked for, since they import what they time."""
