"""Chains of reshapes and transposes become one."""
