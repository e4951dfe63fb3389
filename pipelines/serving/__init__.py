"""`preceptor serve`: the registry's champion behind vLLM's OpenAI server, followed without a restart."""
