//! The records of a run: read, made tokens of, and told.

use qlora_train::data::{Dataset, Example, Policy, Tokenizer};
use qlora_train::error::{Error, Place};
use qlora_train::model::tokens::Limits;
use qlora_train::train::evaluate;
use qlora_train::train::steps::Steps;

use super::flags::TrainFlags;
use super::job::larger;
use super::opened::Opened;
use super::train::TrainArgs;
use super::values::Date;
use super::{output, told};

/// All records as tokens.
pub struct Corpus {
    /// Longest sequence.
    pub seq_len: usize,
    /// What chat templates were told.
    pub date: Date,
    /// What made tokens of them, if the model has it.
    pub tokenizer: Option<Tokenizer>,
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
        let tokenizer = opened.tokenizer(date.moment())?;
        let seq_len = flags.data.seq_len.unwrap_or_else(|| opened.usual_length());
        tell_length(seq_len, opened);
        let policy = Policy {
            seq_len,
            vocab_size: opened.config.vocab,
            train_on: flags.data.train_on.train_on(),
        };
        let train = told::load(&args.data, opened, tokenizer.as_ref(), &policy)?;
        told::tell("data", &train.report, tokenizer.as_ref());
        told::refuse(&args.data, &train.report, tokenizer.as_ref())?;
        told::tell_example(&args.data, &train.examples[0], tokenizer.as_ref());
        let eval = Self::load_eval(flags, opened, tokenizer.as_ref(), &policy)?;
        Ok(Self { seq_len, date, tokenizer, train, eval })
    }

    fn load_eval(
        flags: &TrainFlags,
        opened: &Opened,
        tokenizer: Option<&Tokenizer>,
        policy: &Policy,
    ) -> Result<Option<Dataset>, Error> {
        if flags.output.eval_data.is_empty() {
            if flags.output.eval_steps.is_some() {
                let what = "there is nothing to evaluate: give --eval-data too";
                return Err(Error::input(Place::flag("--eval-steps"), what));
            }
            return Ok(None);
        }
        let eval = told::load(&flags.output.eval_data, opened, tokenizer, policy)?;
        told::tell("evaluation data", &eval.report, tokenizer);
        Ok(Some(eval))
    }

    /// The largest micro-batch of training and of evaluation.
    pub fn limits(&self, steps: &Steps) -> Limits {
        let train = steps.limits();
        let eval = self.eval.as_ref().map(|eval| evaluate::limits(&eval.examples, self.seq_len));
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
pub fn tell_length(seq_len: usize, opened: &Opened) {
    let most = opened.config.max_positions;
    if seq_len > most {
        output::warn(format_args!("--seq-len {seq_len}: the model was made for {most} tokens"));
    }
}
