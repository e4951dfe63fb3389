"""OpenAI-compatible endpoints: every reply that was paid for is kept, and budgets hold. Nothing is imported here."""
