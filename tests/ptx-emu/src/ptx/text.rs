//! From text to statements.

/// A piece of text that means something by itself, and the line (from 1) where it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Statement {
    pub(super) line: u32,
    pub(super) kind: Shape,
}

/// What a statement looks like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Shape {
    /// `{` of a body or a scope.
    Open,
    /// `}`.
    Close,
    /// `name:`, without the colon.
    Label(String),
    /// Everything else, without its semicolon.
    Text(String),
}

/// Directives that end with their line instead of a semicolon.
const LINES: [&str; 8] = [
    ".version",
    ".target",
    ".address_size",
    ".file",
    ".loc",
    ".maxntid",
    ".minnctapersm",
    ".reqntid",
];

/// Cuts `text` into statements; comments are left out.
pub(super) fn statements(text: &str) -> Vec<Statement> {
    let mut cutter = Cutter::default();
    for (number, line) in text.lines().enumerate() {
        let line = line.split("//").next().unwrap_or_default().trim();
        cutter.line(number as u32 + 1, line);
    }
    cutter.done
}

#[derive(Default)]
struct Cutter {
    done: Vec<Statement>,
    /// What has been read of a statement, and where it began.
    open: String,
    begun: u32,
    /// Braces open within it, as those of a list of registers.
    depth: usize,
}

impl Cutter {
    fn line(&mut self, number: u32, line: &str) {
        if self.open.is_empty() && LINES.iter().any(|directive| line.starts_with(directive)) {
            self.begun = number;
            return self.push(Shape::Text(line.trim_end_matches(';').to_owned()));
        }
        for character in line.chars() {
            self.character(number, character);
        }
        // The head of a kernel ends with its parenthesis.
        if self.open.contains(".entry") && self.open.ends_with(')') {
            self.finish();
        } else if !self.open.is_empty() {
            self.open.push(' ');
        }
    }

    fn character(&mut self, number: u32, character: char) {
        let empty = self.open.trim().is_empty();
        if empty {
            self.open.clear();
            self.begun = number;
        }
        match character {
            '{' if empty => self.push(Shape::Open),
            '}' if empty && self.depth == 0 => self.push(Shape::Close),
            ';' if self.depth == 0 => self.finish(),
            ':' if self.open.starts_with('$') => {
                let name = std::mem::take(&mut self.open);
                self.push(Shape::Label(name));
            }
            space if empty && space.is_whitespace() => (),
            other => {
                self.depth += usize::from(other == '{');
                self.depth -= usize::from(other == '}');
                self.open.push(other);
            }
        }
    }

    fn finish(&mut self) {
        let text = std::mem::take(&mut self.open);
        self.push(Shape::Text(text.trim().to_owned()));
    }

    fn push(&mut self, kind: Shape) {
        self.done.push(Statement { line: self.begun, kind });
    }
}

/// Cuts a list at its commas; those within braces, brackets and parentheses stay.
pub(super) fn list(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0, 0);
    for (i, character) in text.char_indices() {
        match character {
            '{' | '[' | '(' => depth += 1,
            '}' | ']' | ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(text[start..i].trim());
                start = i + 1;
            }
            _ => (),
        }
    }
    if !text[start..].trim().is_empty() {
        parts.push(text[start..].trim());
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_end_where_they_should() {
        let text = ".version 8.7\n.visible .entry k(\n.param .u64 p\n)\n{\n.reg .b32 %r<2>; // two\n\
                    $L1:\n@%p1 bra $L1;\nld.v2.u32 {%r0,\n %r1}, [%rd1+8];\n}\n";
        let found: Vec<_> = statements(text).into_iter().map(|s| (s.line, s.kind)).collect();
        let text = |text: &str| Shape::Text(text.to_owned());
        assert_eq!(
            found,
            [
                (1, text(".version 8.7")),
                (2, text(".visible .entry k( .param .u64 p )")),
                (5, Shape::Open),
                (6, text(".reg .b32 %r<2>")),
                (7, Shape::Label("$L1".to_owned())),
                (8, text("@%p1 bra $L1")),
                (9, text("ld.v2.u32 {%r0, %r1}, [%rd1+8]")),
                (11, Shape::Close),
            ]
        );
    }

    #[test]
    fn lists_keep_what_is_in_brackets() {
        assert_eq!(list("{%r0, %r1}, [%rd1+8], 16"), ["{%r0, %r1}", "[%rd1+8]", "16"]);
    }
}
