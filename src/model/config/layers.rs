//! Which layers see only a window of tokens, and which rotary table each one uses.

use serde_json::Value;

use super::family::Family;
use super::fields::Fields;
use super::{LARGEST_DEPTH, LARGEST_LENGTH, LayerKind};
use crate::error::Error;

/// What a layer's attention sees.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sight {
    Full,
    Sliding,
}

/// The kinds of all `layers` layers.
///
/// `layer_types`, where it stands, decides for the families that mix; for the others it must say
/// what the family does anyway.
pub(super) fn read(
    fields: &Fields,
    family: Family,
    layers: usize,
) -> Result<Vec<LayerKind>, Error> {
    let window = window(fields, family)?;
    let written = written(fields, layers)?;
    let sights = match written {
        Some(sights) if mixes(family) => sights,
        Some(sights) => {
            let own = usual(fields, family, layers, window)?;
            agree(fields, family, &sights, &own)?;
            own
        }
        None => usual(fields, family, layers, window)?,
    };
    sights.into_iter().map(|sight| kind(fields, family, sight, window)).collect()
}

fn kind(
    fields: &Fields,
    family: Family,
    sight: Sight,
    window: Option<usize>,
) -> Result<LayerKind, Error> {
    if sight == Sight::Full {
        return Ok(LayerKind { window: None, rope: 0 });
    }
    if window.is_none() {
        return Err(no_window(fields));
    }
    let rope = usize::from(family == Family::Gemma3);
    Ok(LayerKind { window, rope })
}

fn no_window(fields: &Fields) -> Error {
    if fields.value("use_sliding_window").is_some() {
        let what = "not true, but layer_types has sliding_attention layers: make them agree";
        return fields.refuse("use_sliding_window", what);
    }
    let what = "missing, expected the number of tokens that sliding_attention layers see";
    fields.refuse("sliding_window", what)
}

fn mixes(family: Family) -> bool {
    use Family::{Gemma2, Gemma3, Qwen2, Qwen3};
    matches!(family, Qwen2 | Qwen3 | Gemma2 | Gemma3)
}

/// The window that sliding layers have, `None` where nothing slides.
fn window(fields: &Fields, family: Family) -> Result<Option<usize>, Error> {
    let key = "sliding_window";
    let found = fields.optional_size(key, LARGEST_LENGTH);
    match family {
        Family::Llama | Family::Gemma if fields.value(key).is_some() => {
            let what = format!("{} sees all tokens: write null", family.architecture());
            Err(fields.refuse_value(key, &what))
        }
        Family::Llama | Family::Gemma => Ok(None),
        // A window is written even where it is switched off, and is then sometimes nonsense.
        Family::Qwen2 | Family::Qwen3 if !fields.flag("use_sliding_window", false)? => Ok(None),
        Family::Phi3 => found,
        _ if !fields.stands(key) => {
            Err(fields.refuse(key, "missing, expected a number of tokens, or null for all"))
        }
        _ => found,
    }
}

/// What the family does without `layer_types`.
fn usual(
    fields: &Fields,
    family: Family,
    layers: usize,
    window: Option<usize>,
) -> Result<Vec<Sight>, Error> {
    use Family::{Gemma, Gemma2, Gemma3, Llama, Mistral, Phi3, Qwen2, Qwen3};
    let every = |slides: &dyn Fn(usize) -> bool| {
        let sight = |layer| {
            if slides(layer) { Sight::Sliding } else { Sight::Full }
        };
        (0..layers).map(sight).collect()
    };
    Ok(match family {
        Llama | Gemma => every(&|_| false),
        Mistral | Phi3 => every(&|_| window.is_some()),
        Qwen2 | Qwen3 if window.is_none() => every(&|_| false),
        Qwen2 | Qwen3 => {
            let first = first_window_layer(fields)?;
            every(&|layer| layer >= first)
        }
        Gemma2 => every(&|layer| layer % 2 == 0),
        Gemma3 => {
            let pattern = pattern(fields)?;
            every(&|layer| (layer + 1) % pattern != 0)
        }
    })
}

/// `max_window_layers`, despite its name the number of layers *without* a window.
fn first_window_layer(fields: &Fields) -> Result<usize, Error> {
    let key = "max_window_layers";
    match fields.value(key) {
        Some(value) if value.as_u64() == Some(0) => Ok(0),
        _ => fields.size(key, LARGEST_DEPTH),
    }
}

/// Every how many layers one sees all tokens.
fn pattern(fields: &Fields) -> Result<usize, Error> {
    let found = fields.optional_size("sliding_window_pattern", LARGEST_DEPTH)?;
    let what = "this, or layer_types with one entry for each layer";
    fields.needed("sliding_window_pattern", found, what)
}

fn written(fields: &Fields, layers: usize) -> Result<Option<Vec<Sight>>, Error> {
    let key = "layer_types";
    let Some(list) = fields.list(key)? else {
        return Ok(None);
    };
    if list.len() != layers {
        let what = format!(
            "has {} entries, expected one for each of the {layers} layers of num_hidden_layers",
            list.len()
        );
        return Err(fields.refuse(key, what));
    }
    let sight = |value: &Value| match value.as_str() {
        Some("full_attention") => Ok(Sight::Full),
        Some("sliding_attention") => Ok(Sight::Sliding),
        _ => Err(fields.refuse(key, "expected full_attention or sliding_attention in each entry")),
    };
    list.iter().map(sight).collect::<Result<_, _>>().map(Some)
}

fn agree(fields: &Fields, family: Family, written: &[Sight], own: &[Sight]) -> Result<(), Error> {
    match written.iter().zip(own).position(|(a, b)| a != b) {
        None => Ok(()),
        Some(layer) => {
            let what = format!(
                "entry {layer} differs from what {} computes there: remove the field",
                family.architecture()
            );
            Err(fields.refuse("layer_types", what))
        }
    }
}
