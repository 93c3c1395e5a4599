"""D3S's selection of rollouts and tokens against GRPO and random subsets."""
