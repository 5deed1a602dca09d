"""A Chainlit app that shows what forebay keeps; `forebay demo` runs it."""
