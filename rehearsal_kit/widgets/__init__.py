"""Controls and live pictures of one run; the only part that knows ipywidgets and plotly."""
