"""Policy training: supervised fine-tuning, rollouts and PPO."""
