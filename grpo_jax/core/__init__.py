"""Array mathematics of policy optimization: pure functions, jax alone. The index, by topic.

    from grpo_jax.core import groups, objectives, units, weights    # what most methods need

The layout of a batch
  units             from tokens to units to rollouts and back, masks; read this first
  rows              rollouts and rows reordered, cut and joined with `owner` in step
  grids             units with an order as [N, G, K]: lines, turns, segments
  sequences         a rollout as one sequence; the rollouts of a group side by side

Rewards, before any statistic
  rewards           overlong punishment, KL as a part of the reward
  length_rewards    rewards for being short, against the group
  turns             gains of turns, the outcome for the last
  ranking           what a rank of a list is worth

Advantages
  groups            mean, deviation, standardize, leave one out, whiten, sides of the mean
  log_partition     centered by tau log mean exp(r / tau)
  returns           discounted sums and generalized advantages along a row
  segments          values at cuts of a completion
  trees             values and advantages of rollouts that branch
  positions         baselines by token position, to replicate released code
  trackers          success rates of prompts from visit to visit, and what they decide

What is trained, and how much it counts
  weights           aggregation: all masks and denominators in one array
  selection         the rollouts of largest variance, the tokens of highest score
  conflicts         tokens that good and bad completions share at one place

Losses
  objectives        the clipped loss with KL, value and entropy terms; the score-function loss
  surrogates        ratios and policy losses a token
  divergences       estimates of KL(policy || reference) a token
  values            the loss of a value head
  preference        losses on pairs
  contrastive       InfoNCE between two prompts of one task
  load_balance      how evenly a router uses its experts
  unified           the estimator that policy-gradient methods obey

Control and bandits
  soft_actor_critic its formulas
  transitions       records of steps (s, a, s', r)
  bandit_counts     what is known of arms after some pulls
"""
