"""HPT's gate between RL and imitation against both alone and mixtures of them."""
