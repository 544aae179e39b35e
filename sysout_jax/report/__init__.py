"""From a model and text to a record of findings, figures and one self-contained page."""
