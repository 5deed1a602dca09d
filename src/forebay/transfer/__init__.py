"""Taking chats along: all rows as lines of JSON, and back into any database of forebay's."""
