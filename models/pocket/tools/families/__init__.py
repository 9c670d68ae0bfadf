"""The task families of the pocket model, a theme a module; a family is a function of a random.Random."""
