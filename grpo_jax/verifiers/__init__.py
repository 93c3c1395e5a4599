"""Text to reward parts, in processes of their own: `verifiers.pool.RewardPool`.

Empty on purpose: the reward processes import this package, and must not wait for numpy.
"""
