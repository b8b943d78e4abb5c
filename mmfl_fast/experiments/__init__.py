"""Experiments around the engine: one call, presets, comparisons, tables, plots, reports."""
