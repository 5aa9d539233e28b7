"""Early exits: small classifiers inside a model that answer where they are sure."""
