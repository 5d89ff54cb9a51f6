//! A module: its variables and kernels.

use std::collections::HashMap;

use super::decode::operations;
use super::operands::Names;
use super::text::{Shape, Statement, list, statements};
use super::{Instruction, Operation, Type};

/// What is wrong with a text, and where.
#[derive(Debug, thiserror::Error)]
#[error("line {line} of the PTX: {problem}: {text}")]
pub struct PtxError {
    /// From 1.
    pub line: u32,
    /// What it says there.
    pub text: String,
    /// What is wrong with it.
    pub problem: &'static str,
}

/// Kernels and the variables that they share.
#[derive(Debug, Default)]
pub struct Module {
    /// In their order.
    pub kernels: Vec<Kernel>,
    /// Constant memory.
    pub constants: Vec<u8>,
    /// Names of source files by number.
    pub files: HashMap<u32, String>,
    lines: Vec<String>,
}

/// One kernel.
#[derive(Debug, Default)]
pub struct Kernel {
    /// Its name.
    pub name: String,
    /// What it does.
    pub instructions: Vec<Instruction>,
    /// Size of its arguments.
    pub param_bytes: usize,
    /// Shared memory that it declares, dynamic one not counted.
    pub shared_bytes: usize,
    /// Most threads of a block, if it says so.
    pub most_threads: Option<u32>,
    /// Registers of each kind: words, longs, predicates.
    pub registers: [usize; 3],
}

impl Module {
    /// Reads a module.
    ///
    /// # Errors
    /// The first statement that is not understood.
    pub fn parse(text: &str) -> Result<Self, PtxError> {
        let mut reader = Reader {
            module: Self { lines: text.lines().map(str::to_owned).collect(), ..Self::default() },
            names: Names::default(),
            dynamic: None,
            shared_bytes: 0,
        };
        let statements = statements(text);
        let mut rest = statements.as_slice();
        while let Some((first, others)) = rest.split_first() {
            rest = others;
            let Shape::Text(text) = &first.kind else { continue };
            if text.contains(".entry") {
                rest = reader.kernel(text, first, rest)?;
            } else {
                reader
                    .declaration(text)
                    .ok_or_else(|| reader.error(first, "unknown declaration"))?;
            }
        }
        Ok(reader.module)
    }

    /// The kernel of this name.
    pub fn kernel(&self, name: &str) -> Option<&Kernel> {
        self.kernels.iter().find(|kernel| kernel.name == name)
    }

    /// Where an instruction comes from: file and line of the source, or the line of the PTX, and what
    /// it says there.
    pub fn place(&self, instruction: &Instruction) -> String {
        let text = self.lines[instruction.line as usize - 1].trim();
        let source =
            instruction.source.and_then(|(file, line)| Some((self.files.get(&file)?, line)));
        match source {
            Some((file, line)) => format!("{file}:{line} `{text}`"),
            None => format!("PTX line {} `{text}`", instruction.line),
        }
    }
}

struct Reader {
    module: Module,
    names: Names,
    /// Name of dynamic shared memory, which begins behind the declared one.
    dynamic: Option<String>,
    shared_bytes: u64,
}

impl Reader {
    fn error(&self, statement: &Statement, problem: &'static str) -> PtxError {
        let text = match &statement.kind {
            Shape::Text(text) => text.clone(),
            other => format!("{other:?}"),
        };
        PtxError { line: statement.line, text, problem }
    }

    fn declaration(&mut self, text: &str) -> Option<()> {
        let words: Vec<&str> = text.split_whitespace().collect();
        match *words.first()? {
            ".version" | ".target" | ".address_size" | ".pragma" => Some(()),
            ".file" => {
                let path = words.get(2)?.trim_matches(['"', ',', '/']).to_owned();
                self.module.files.insert(words[1].parse().ok()?, path);
                Some(())
            }
            _ if words.contains(&".shared") => self.shared(&words),
            _ if words.contains(&".const") => self.constant(text),
            _ => None,
        }
    }

    fn shared(&mut self, words: &[&str]) -> Option<()> {
        let (name, size) = array(words.last()?)?;
        match size {
            None => self.dynamic = Some(name.to_owned()),
            Some(size) => {
                let start = self.shared_bytes.next_multiple_of(alignment(words));
                self.names.places.insert(name.to_owned(), start);
                self.shared_bytes = start + size as u64;
            }
        }
        Some(())
    }

    fn constant(&mut self, text: &str) -> Option<()> {
        let (head, values) = text.split_once('=').unwrap_or((text, "{}"));
        let words: Vec<&str> = head.split_whitespace().collect();
        let (name, size) = array(words.last()?)?;
        let constants = &mut self.module.constants;
        let start = constants.len().next_multiple_of(alignment(&words) as usize);
        constants.resize(start, 0);
        for value in list(values.trim().strip_prefix('{')?.strip_suffix('}')?) {
            constants.push(value.parse().ok()?);
        }
        constants.resize(start + size?, 0);
        self.names.places.insert(name.to_owned(), start as u64);
        Some(())
    }

    /// Reads a kernel and gives what follows it.
    fn kernel<'s>(
        &mut self,
        head: &str,
        first: &Statement,
        statements: &'s [Statement],
    ) -> Result<&'s [Statement], PtxError> {
        let mut names = self.names.clone();
        let mut kernel = Kernel { shared_bytes: self.shared_bytes as usize, ..Kernel::default() };
        if let Some(name) = &self.dynamic {
            names.places.insert(name.clone(), self.shared_bytes.next_multiple_of(16));
        }
        read_head(head, &mut kernel, &mut names)
            .ok_or_else(|| self.error(first, "unknown head"))?;
        let mut body =
            Body { kernel, names, labels: HashMap::new(), jumps: Vec::new(), source: None };
        let mut depth = 0;
        for (i, statement) in statements.iter().enumerate() {
            match &statement.kind {
                Shape::Open => depth += 1,
                Shape::Close => depth -= 1,
                Shape::Label(name) => {
                    body.labels.insert(name.clone(), body.kernel.instructions.len() as u32);
                }
                Shape::Text(text) => body
                    .statement(text, statement.line)
                    .ok_or_else(|| self.error(statement, "unknown instruction"))?,
            }
            if depth == 0 && statement.kind == Shape::Close {
                let kernel = body.finish().ok_or_else(|| self.error(first, "unknown label"))?;
                self.module.kernels.push(kernel);
                return Ok(&statements[i + 1..]);
            }
        }
        Err(self.error(first, "no end of the kernel"))
    }
}

/// `.visible .entry name( .param .align 8 .b8 p[48], … )`.
fn read_head(head: &str, kernel: &mut Kernel, names: &mut Names) -> Option<()> {
    let (head, params) = head.split_once('(')?;
    kernel.name = head.split_whitespace().last()?.to_owned();
    for param in list(params.strip_suffix(')')?) {
        let words: Vec<&str> = param.split_whitespace().collect();
        let last = words.last()?;
        let ty = words.iter().rev().find_map(|word| Type::from_name(word.strip_prefix('.')?))?;
        let (name, size) = match array(last) {
            Some((name, size)) => (name, size? * ty.bytes()),
            None => (*last, ty.bytes()),
        };
        let align = if words.contains(&".align") { alignment(&words) as usize } else { ty.bytes() };
        let start = kernel.param_bytes.next_multiple_of(align);
        names.places.insert(name.to_owned(), start as u64);
        kernel.param_bytes = start + size;
    }
    Some(())
}

/// Name and size of `name[size]`; no size between the brackets is the size of dynamic memory.
fn array(text: &str) -> Option<(&str, Option<usize>)> {
    let (name, size) = text.strip_suffix(']')?.split_once('[')?;
    Some((name, if size.is_empty() { None } else { Some(size.parse().ok()?) }))
}

fn alignment(words: &[&str]) -> u64 {
    let at = words.iter().position(|word| *word == ".align");
    at.and_then(|at| words.get(at + 1)?.parse().ok()).unwrap_or(1)
}

/// A kernel that is being read.
struct Body {
    kernel: Kernel,
    names: Names,
    labels: HashMap<String, u32>,
    /// Branches: their place, and the label that they go to.
    jumps: Vec<(usize, String)>,
    source: Option<(u32, u32)>,
}

impl Body {
    fn statement(&mut self, text: &str, line: u32) -> Option<()> {
        let (first, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        match first {
            ".reg" => self.names.declare(rest),
            ".maxntid" | ".reqntid" => {
                let numbers = rest.split(',').map(|number| number.trim().parse::<u32>().ok());
                self.kernel.most_threads = Some(numbers.product::<Option<u32>>()?);
                Some(())
            }
            ".minnctapersm" | ".pragma" => Some(()),
            ".loc" => {
                let mut numbers = rest.split_whitespace().map_while(|word| word.parse().ok());
                self.source = Some((numbers.next()?, numbers.next()?));
                Some(())
            }
            _ => self.instruction(text, line),
        }
    }

    fn instruction(&mut self, text: &str, line: u32) -> Option<()> {
        let (guard, text) = match text.strip_prefix('@') {
            Some(guarded) => {
                let (guard, text) = guarded.split_once(char::is_whitespace)?;
                (Some(self.guard(guard)?), text.trim())
            }
            None => (None, text),
        };
        let (at, jumps) = (self.kernel.instructions.len(), &mut self.jumps);
        let mut target = |label: &str| {
            jumps.push((at, label.to_owned()));
            0
        };
        for operation in operations(text, &self.names, &mut target)? {
            let source = self.source;
            self.kernel.instructions.push(Instruction { operation, guard, line, source });
        }
        Some(())
    }

    fn guard(&self, text: &str) -> Option<(u16, bool)> {
        let name = text.trim_start_matches('!');
        match self.names.register(name)? {
            super::Register::Predicate(register) => Some((register, name.len() < text.len())),
            _ => None,
        }
    }

    fn finish(mut self) -> Option<Kernel> {
        for (at, label) in &self.jumps {
            let target = *self.labels.get(label)?;
            self.kernel.instructions[*at].operation = Operation::Branch(target);
        }
        let Names { words, longs, predicates, .. } = self.names;
        self.kernel.registers = [words, longs, predicates].map(usize::from);
        Some(self.kernel)
    }
}
