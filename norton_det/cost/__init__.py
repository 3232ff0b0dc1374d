"""What a network costs: multiply-accumulates and parameters, counted and in closed form."""
