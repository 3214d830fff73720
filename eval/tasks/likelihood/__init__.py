"""Tasks that ask which of two sounds a model finds more likely: the suites of ZeroSpeech, StoryCloze and SALMon."""
