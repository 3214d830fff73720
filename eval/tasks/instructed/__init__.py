"""Tasks in which a recording comes with an instruction: speech translation, and labels such as intent or emotion."""
