"""Taking chats along: all rows as lines of JSON, and back into any database of forebay's.

Its door: `bring_export`, `Brought`, `ChangeOver`, `ChatCopy`, `Chats`, `Choices`, `DynamoTable`, `lines`,
`LiteralFile`, `OtherLayer`, `Pass`, `Progress`, `Sample`, `take`, `Taken`, `zone`, `Zones`.
"""
