"""OpenAI's API: requests for transcriptions, speech and chat, and realtime sessions."""
