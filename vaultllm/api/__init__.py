"""What other programs on this computer speak to: OpenAI's, Ollama's and LM Studio's protocols, our own, and MCP.

Imported by nothing but the commands `serve` and `mcp` and the daemon: fastapi and uvicorn are loaded here only.
"""
