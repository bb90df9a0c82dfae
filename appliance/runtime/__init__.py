"""Run models: one worker process per loaded version, and the parent's hold on them."""
