"""Taking chats along: all rows as lines of JSON, and back into any database of forebay's.

Its door: `bring_export`, `Brought`, `ChangeOver`, `Choices`, `lines`, `Pass`, `Sample`, `take`, `Taken`, `Zones`.
"""
