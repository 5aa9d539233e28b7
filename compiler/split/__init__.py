"""One model over several devices: cut into stages, each a bundle, and the plan that joins them."""
