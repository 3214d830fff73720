"""Models to measure that are no folders of this repository: cascades, and causal LMs over units."""
