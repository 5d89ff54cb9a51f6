//! The records of a command: read and made tokens of; those of a training run are told, too.

use std::path::{Path, PathBuf};

use qlora_train::data::{Dataset, Example, Policy, Tokenizer};
use qlora_train::error::{Error, Place};
use qlora_train::model::tokens::Limits;
use qlora_train::train::evaluate;
use qlora_train::train::steps::Steps;

use super::flags::{DataFlags, TrainFlags};
use super::job::larger;
use super::opened::Opened;
use super::train::TrainArgs;
use super::values::Date;
use super::{output, told};

/// How records become tokens.
pub struct Reading {
    /// What chat templates are told.
    pub date: Date,
    /// The model's tokenizer, if it has one.
    pub tokenizer: Option<Tokenizer>,
    /// Longest sequence, and what is supervised.
    pub policy: Policy,
}

impl Reading {
    /// As `flags` say, on the day `date`, with the chat template of `adapter` where that brings its own.
    ///
    /// # Errors
    /// A tokenizer that is damaged.
    pub fn new(
        flags: &DataFlags,
        opened: &Opened,
        adapter: Option<&Path>,
        date: Date,
    ) -> Result<Self, Error> {
        let tokenizer = opened.tokenizer_of(adapter, date.moment())?;
        let seq_len = flags.seq_len.unwrap_or_else(|| opened.usual_length());
        tell_length(seq_len, opened);
        let (vocab_size, train_on) = (opened.config.vocab, flags.train_on.train_on());
        Ok(Self { date, tokenizer, policy: Policy { seq_len, vocab_size, train_on } })
    }

    /// The records of `files`.
    ///
    /// # Errors
    /// As [`told::load`].
    pub fn read(&self, files: &[PathBuf], opened: &Opened) -> Result<Dataset, Error> {
        told::load(files, opened, self.tokenizer.as_ref(), &self.policy)
    }
}

/// All records of a training run as tokens.
pub struct Corpus {
    /// How they were read.
    pub reading: Reading,
    /// To learn from.
    pub train: Dataset,
    /// To evaluate.
    pub eval: Option<Dataset>,
}

impl Corpus {
    /// Reads the data; `before` is the day that an earlier run's templates were told.
    ///
    /// # Errors
    /// Whatever is wrong with them.
    pub fn load(args: &TrainArgs, opened: &Opened, before: Option<Date>) -> Result<Self, Error> {
        let flags = &args.flags;
        let date = flags.data.date.or(before).unwrap_or_else(Date::today);
        let reading = Reading::new(&flags.data, opened, None, date)?;
        let (train, tokenizer) = (reading.read(&args.data, opened)?, reading.tokenizer.as_ref());
        told::tell("data", &train.report, tokenizer);
        told::refuse(&args.data, &train.report, tokenizer)?;
        told::tell_example(&args.data, &train.examples[0], tokenizer);
        let eval = Self::load_eval(flags, opened, &reading)?;
        Ok(Self { reading, train, eval })
    }

    fn load_eval(
        flags: &TrainFlags,
        opened: &Opened,
        reading: &Reading,
    ) -> Result<Option<Dataset>, Error> {
        if flags.output.eval_data.is_empty() {
            if flags.output.eval_steps.is_some() {
                let what = "there is nothing to evaluate: give --eval-data too";
                return Err(Error::input(Place::flag("--eval-steps"), what));
            }
            return Ok(None);
        }
        let eval = reading.read(&flags.output.eval_data, opened)?;
        told::tell("evaluation data", &eval.report, reading.tokenizer.as_ref());
        Ok(Some(eval))
    }

    /// Longest sequence.
    pub fn seq_len(&self) -> usize {
        self.reading.policy.seq_len
    }

    /// The largest micro-batch of training and of evaluation.
    pub fn limits(&self, steps: &Steps) -> Limits {
        let train = steps.limits();
        let eval = self.eval.as_ref().map(|eval| evaluate::limits(&eval.examples, self.seq_len()));
        eval.map_or(train, |eval| larger(train, eval))
    }

    /// The shortest record that fits `limits`, of which there is one in every run.
    pub fn shortest(&self, limits: Limits) -> Option<&Example> {
        let fits = |example: &&Example| {
            example.tokens.len() <= limits.tokens && example.supervised_count() <= limits.targets
        };
        let examples = self.train.examples.iter();
        examples.filter(fits).min_by_key(|example| example.tokens.len())
    }
}

/// Warns where sequences may be longer than the model was made for.
fn tell_length(seq_len: usize, opened: &Opened) {
    let most = opened.config.max_positions;
    if seq_len > most {
        output::warn(format_args!("--seq-len {seq_len}: the model was made for {most} tokens"));
    }
}
