"""A model as a service: the interfaces OpenAI clients speak, retrieval, programs, agents and their tools."""
