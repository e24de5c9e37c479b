"""What users hold: LanguageModel, Translator, Embedder."""
